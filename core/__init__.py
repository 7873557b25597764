"""Puzzle-CAM: the library half that the stage scripts share."""
