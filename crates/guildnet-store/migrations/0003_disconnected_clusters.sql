-- A cluster that a person has disconnected keeps its record; its connector is not started until they connect it again.
ALTER TABLE clusters ADD COLUMN disconnected INTEGER NOT NULL DEFAULT 0;
