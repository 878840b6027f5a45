"""The engine: stock models under a rule of memory, in the parallel pass and online."""

from ccm.engine.stack import check_versions

check_versions()  # first: with libraries that are too old, other modules would fail to import, for no clear reason
