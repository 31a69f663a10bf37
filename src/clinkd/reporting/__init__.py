"""Tables, figures, pages and one comparison. Starts without torch."""

__all__ = [
    "ablation",
    "box_sheet",
    "browse",
    "cases",
    "compare",
    "figures",
    "gallery",
    "printed",
    "report",
    "strict",
    "survey",
    "systems",
    "tables",
    "viewer",
]
