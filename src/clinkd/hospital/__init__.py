"""What a hospital does with its archive: bring studies from it, and list their images in a sheet to be filled in."""

__all__ = ["image_sheet", "pull"]
