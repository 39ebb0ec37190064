-- Messages to topics, in seq order: subscriptions are looked for in this index alone.
CREATE INDEX messages_to_topics ON messages (seq, address) WHERE kind = 3;
