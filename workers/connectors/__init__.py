"""The built-in connectors: HTTP JSON APIs, SQL tables, CSV and JSONL files; each as source and as target.

The connectors: ``http.py``, ``sql.py``, ``file_sources.py``, ``file_targets.py``; ``*_configs.py`` is what users write.
Beneath them: ``session.py``, ``pages.py``, ``answers.py``, ``pace.py`` · ``database.py`` · ``area.py``, ``lines.py``.
"""
