"""What a hospital does with its archive: bring studies, list their images in a sheet, send answers, or listen: what
arrives is asked by rules, and waits in a worklist until a person decides."""

__all__ = ["image_sheet", "listen", "polling", "pull", "push", "rules", "worklist"]
