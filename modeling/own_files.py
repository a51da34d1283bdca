"""Which files and folders are a user's own, and which a system or program keeps beside them."""

# In lower case; a DICOMDIR is an index of other files.
BESIDE = {
    *("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
    *("lost+found", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    "dicomdir",
}


def is_own(name: str) -> bool:
    """Whether a file or folder of this name, without its path, is the user's own.

    Hidden ones are not, nor an office program's lock, as ~$x, nor what `BESIDE` names.
    """
    return not name.startswith((".", "~$")) and name.casefold() not in BESIDE
