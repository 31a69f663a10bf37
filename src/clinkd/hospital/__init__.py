"""What a hospital does with its archive: bring studies from it, list their images in a sheet to be filled in, or
listen: what arrives is asked by rules, and waits in a worklist until a person decides."""

__all__ = ["image_sheet", "listen", "pull", "rules", "worklist"]
