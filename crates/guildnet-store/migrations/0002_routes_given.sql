-- Whether a person named the cluster's networks. Those that were discovered follow the cluster when it changes.
ALTER TABLE clusters ADD COLUMN routes_given INTEGER NOT NULL DEFAULT 0 CHECK (routes_given IN (0, 1));
