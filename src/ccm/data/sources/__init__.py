"""The data sets that ccm reads: where they are published, and how they come into the folders that it reads."""
