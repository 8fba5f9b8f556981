"""The built-in connectors: HTTP JSON APIs, SQL tables, CSV and JSONL files; each as source and as target.

``configs.py`` is what users write. ``http.py``, ``sql.py`` and ``files.py`` are the connectors; beside each lies what
it stands on: ``session.py``, ``pages.py``, ``answers.py``, ``pace.py`` · ``database.py`` · ``area.py``, ``lines.py``.
"""
