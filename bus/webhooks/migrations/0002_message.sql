-- What was told about a message is found by the message's place in the log.
CREATE INDEX webhook_events_of_message ON webhook_events (seq) WHERE seq IS NOT NULL;
