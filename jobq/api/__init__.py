"""The HTTP API (``/v1``): a door to ``jobq.client.JobQ``, and no rule of its own. Needs the extra ``api``."""
