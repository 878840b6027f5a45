"""What everything stands on: settings, rules of memory, errors, files. Nothing here knows a model."""
