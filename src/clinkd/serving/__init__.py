"""View a run and ask a model, in a browser or over an API: one process, behind one token."""

__all__ = ["limits", "listening", "server"]
