"""What a hospital does with its archive: bring studies from it, list their images in a sheet to be filled in, and keep a
worklist of what arrives until a person decides."""

__all__ = ["image_sheet", "pull", "worklist"]
