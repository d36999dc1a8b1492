-- A cluster that a person has made read-only: the Host App passes nothing on to its API server that changes something.
ALTER TABLE clusters ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0 CHECK (read_only IN (0, 1));
