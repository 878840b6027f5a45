"""The ground floor: settings, rules of memory, errors and files. Nothing here knows a model."""
