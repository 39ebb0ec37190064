-- The policies that a bus begins with: a day by default, and the five standard ones. From now on they are rows like others.
INSERT INTO policies VALUES ('$default', 'medium', 86400000000, 0, 'standard', 0);
INSERT INTO policies VALUES ('error', 'short', 3600000000, 1, 'standard', 0);
INSERT INTO policies VALUES ('log', 'medium', 86400000000, 0, 'standard', 0);
INSERT INTO policies VALUES ('command', 'long', 604800000000, 1, 'standard', 0);
INSERT INTO policies VALUES ('notification', 'immediate', NULL, 0, 'standard', 0);
INSERT INTO policies VALUES ('audit', 'permanent', NULL, 0, 'standard', 0);
-- Records beside the log: files of the archive for a year, an audit's records for 90 days.
INSERT INTO policies VALUES ('$archive', 'custom', 31536000000000, 0, 'standard', 0);
INSERT INTO policies VALUES ('$audit', 'custom', 7776000000000, 0, 'standard', 0);
-- What was stored before is stamped by the first sweeps, from here on.
INSERT INTO meta VALUES ('retention_restamp', 0);
