"""What outgoing webhooks are made of: bodies and signatures, policies of delivery, lanes, the forms that chats take."""
