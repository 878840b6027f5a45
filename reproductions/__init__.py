"""Published results at a small scale, each by one command: from scratch to the table, on two cores."""
