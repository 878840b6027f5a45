"""The built-in task: small English dialogues about facts a user tells about themselves."""
