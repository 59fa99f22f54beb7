"""A fuzz over structure: every reader gets valid files with their shapes, counts, types and nesting
changed, and gives a value or a typed refusal.

    mutations  how JSON, records, lines, tables of text and plain bytes are changed
    readers    each kind of file: valid samples, how they are changed, and how they are read
    structure  runs cases and counts what came out: `python -m tests.fuzz.structure --help`

A case is named by kind, seed and number, and is the same on every machine.
"""
