"""What the store asks of SQLite."""

from __future__ import annotations

ERASED = ""
SETTINGS = (
    "locking_mode = EXCLUSIVE",  # one process has the file
    "journal_mode = WAL",
    "synchronous = FULL",  # what was acknowledged outlives a loss of power
    "secure_delete = ON",
    "temp_store = MEMORY",  # files of its own, it does not overwrite
    "foreign_keys = ON",
)
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE parts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner BLOB NOT NULL, before INTEGER REFERENCES parts, depth INTEGER NOT NULL,
    steps INTEGER NOT NULL, whole INTEGER NOT NULL, text TEXT, data BLOB, text_digest BLOB NOT NULL,
    data_digest BLOB NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX parts_before ON parts (before);
CREATE INDEX parts_owner ON parts (owner, size);
CREATE TABLE turns (
    id TEXT PRIMARY KEY, owner BLOB NOT NULL, previous TEXT, chain BLOB, created REAL NOT NULL, used REAL NOT NULL,
    system TEXT NOT NULL, asked TEXT NOT NULL, answer TEXT NOT NULL, part INTEGER NOT NULL REFERENCES parts,
    size INTEGER NOT NULL
);
CREATE INDEX turns_chain ON turns (owner, chain, created);
CREATE INDEX turns_previous ON turns (previous);
CREATE INDEX turns_part ON turns (part);
CREATE INDEX turns_used ON turns (owner, used, size);
"""
_PART = "p.id, p.before, p.steps, p.whole, p.text, p.data, p.text_digest, p.data_digest"
_ADDED = "EXISTS (SELECT 1 FROM parts c WHERE c.before = p.id AND NOT c.whole)"  # whether others were added to its data
ONE = f"SELECT {_PART} FROM parts p WHERE p.id = ?"
# a part of an owner and those before it: to the beginning if that is asked for, or to a whole memory. These rows and
# those of TREE hold data: SQLite would sort them in files that it does not overwrite
CHAIN = f"""
WITH RECURSIVE back(id) AS (
    SELECT id FROM parts WHERE id = ? AND owner = ?
    UNION ALL
    SELECT p.before FROM back JOIN parts p ON p.id = back.id
    WHERE p.before IS NOT NULL AND (? OR NOT p.whole OR p.data IS NULL)
) SELECT {_PART} FROM back JOIN parts p ON p.id = back.id
"""
# the part so many turns back, and no landmark, whose data can go: they can be made again, and nothing was added to them
OLD = f"""
WITH RECURSIVE back(id, number) AS (
    SELECT ?1, 0 UNION ALL
    SELECT p.before, number + 1 FROM back JOIN parts p ON p.id = back.id WHERE number < ?2 AND p.before IS NOT NULL
) SELECT {_PART} FROM back JOIN parts p ON p.id = back.id LEFT JOIN parts b ON b.id = p.before
WHERE number = ?2 AND p.depth % ?3 != 0 AND p.data IS NOT NULL AND p.text IS NOT NULL AND p.text != '{ERASED}'
    AND (p.before IS NULL OR b.data IS NOT NULL OR (b.text IS NOT NULL AND b.text != '{ERASED}')) AND NOT {_ADDED}
"""
# a part and all that follow it, and their owner
TREE = f"""
WITH RECURSIVE tree(id) AS (SELECT ? UNION ALL SELECT p.id FROM parts p JOIN tree ON p.before = tree.id)
SELECT {_PART}, p.owner FROM tree JOIN parts p ON p.id = tree.id
"""
# parts whose data must be there before the text of a turn goes
IN_NEED = f"""
SELECT p.owner, p.id FROM turns t JOIN parts p ON p.id = t.part WHERE t.id = ?1 AND p.data IS NULL AND {_ADDED}
UNION ALL
SELECT p.owner, p.id FROM turns t JOIN parts p ON p.before = t.part WHERE t.id = ?1 AND p.data IS NULL
"""
TEXTLESS = """
WITH RECURSIVE lost(id) AS (
    SELECT id FROM parts WHERE text IS NULL UNION SELECT p.id FROM parts p JOIN lost ON p.before = lost.id
) SELECT t.id FROM turns t JOIN lost ON t.part = lost.id
"""
# a turn of an owner, and all that follow it
FOLLOWING = """
WITH RECURSIVE chain(id) AS (
    SELECT id FROM turns WHERE id = ?1 AND owner = ?2
    UNION SELECT t.id FROM turns t JOIN chain ON t.previous = chain.id WHERE t.owner = ?2
) SELECT id FROM chain
"""
OF_TURN = f"SELECT {_PART}, {_ADDED} FROM turns t JOIN parts p ON p.id = t.part WHERE t.id = ?"
DROP_UNHELD = """
DELETE FROM parts WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM turns WHERE part = ?1)
    AND NOT EXISTS (SELECT 1 FROM parts WHERE before = ?1) RETURNING before, size
"""
