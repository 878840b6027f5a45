"""The engine: stock models under a rule of memory, in the parallel pass and online."""

from ccm.engine.stack import check_versions

check_versions()  # first of all: on a library that is too old, the modules here would fail to import without a word why
