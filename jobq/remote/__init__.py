"""``JobQ`` over HTTP: the methods of ``jobq.client.JobQ``, answered by an API (``jobq api``). Loads no SQLAlchemy."""
