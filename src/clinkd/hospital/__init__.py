"""What a hospital does with its archive: bring studies, list their images in a sheet, and send answers."""

__all__ = ["image_sheet", "pull", "push"]
