"""manifest.jsonl: which pictures of a long run are done, so that it goes on where it was stopped.

A line for each picture, {"file", "seed", "prompt", …, "settings", "seconds", "asked"}, is on the disk before the
picture appears under its name, and the picture is complete when it does. So whenever the program is killed:

    no line             the picture was not made
    a line, no file     it was made, but had no name yet: it is made again under that name, with that seed
    a line and a file   it is done

A line belongs to a picture if the same is asked for: lines of the file of prompts may be moved, added and taken out
between runs. Half a line at the end is what a kill in the middle of writing leaves, and is cut off.
"""
import json
import os
import pathlib
import threading

from npdiffusion.checkpoints.text_files import check_regular
from npdiffusion.errors import UserError
from npdiffusion.jobs.destinations import default_name, encoded, ending_of, fitting, free_for, write_file
from npdiffusion.pictures import images

NAME = "manifest.jsonl"
BEGINNING = b'{"file": "'             # of each line
LONGEST_NAME = 255                    # bytes of a file's name


class Manifest:
    """The manifest of a folder, locked as long as it is open. UserError if another process has it, or it is damaged.

    name: of new pictures, a destinations.Numbered; None names each after its prompt and seed
    """
    def __init__(self, folder, listener, name=None):
        self.folder, self.path, self.listener, self.name = pathlib.Path(folder), pathlib.Path(folder, NAME), listener, name
        self.file = self.opened()
        try:
            self.lock()
            self.lines = self.read()
            self.names, self.synced = {line["file"] for line in self.lines}, len(self.lines)
            self.writing, self.syncing = threading.Lock(), threading.Lock()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self):
        images.remove_leftovers(self.folder)
        return self

    def __exit__(self, *exception):
        self.file.close()

    def opened(self):
        """The file, for reading and appending. UserError for a link, which may lead anywhere, and for what is no file."""
        if self.path.is_symlink():
            raise UserError(f"{self.path}: a symbolic link, which isn't followed: take another folder with --output")
        try:
            if self.path.exists():
                check_regular(self.path)
            return open(self.path, "a+b")
        except OSError as error:
            raise UserError(f"{self.path}: can't be written ({error.strerror or error})") from None

    def lock(self):
        try:
            import fcntl
        except ImportError:           # no such thing on Windows: there, two runs at once are the user's care
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another npdiffusion is at work in this folder") from None

    def read(self):
        """The lines, checked; then half a line at the end is cut off, if it is one of ours."""
        self.file.seek(0)
        *complete, half = self.file.read().split(b"\n")
        lines = []
        for number, line in enumerate(complete, start=1):
            try:
                entry = json.loads(line)
                name, seed, asked = entry["file"], entry["seed"], entry["asked"]
                if not (isinstance(name, str) and isinstance(seed, int) and isinstance(asked, dict)):
                    raise ValueError("file, seed or asked is of another kind")
                if os.path.basename(name) != name or name in ("", ".", "..") or not is_possible(name):
                    raise ValueError(f"{name[:100]!a} is not the name of a file in this folder")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{self.path}, line {number}: not what was written there ({error}); "
                                "mend it, or take another folder with --output") from None
            lines.append(entry)
        if half[:len(BEGINNING)] != BEGINNING[:len(half)]:
            raise UserError(f"{self.path}, line {len(lines) + 1}: not what was written there; mend it, or take another "
                            "folder with --output")
        if half:
            self.file.truncate(self.file.tell() - len(half))
        return lines

    def left(self, entries):
        """Those that are not done. Each of `entries`, done or not, that has a line gets its seed and its `path`."""
        waiting, left = {}, []
        for line in reversed(self.lines):
            waiting.setdefault(json.dumps(line["asked"], sort_keys=True), []).append(line)
        for entry in entries:
            same = waiting.get(json.dumps(entry.asked, sort_keys=True))
            if same:
                line = same.pop()
                entry.request, entry.path = entry.request.changed(seed=line["seed"]), self.folder / line["file"]
            if entry.path is None or not os.path.lexists(entry.path):
                left.append(entry)
        return left

    def save(self, image, text, entry, record):
        """Write a picture under its name, its line before that unless it has one, and set `entry.path`.

        image: PIL image; text: of its settings, for inside the file, or None; record: {key: value} of the line
        Raises UserError if the picture or the line can't be written; then the picture isn't there under its name.
        """
        self.save_file(*encoded(image, text, ending_of(self.name_of(entry))), entry, record)

    def name_of(self, entry):
        """What a picture is to be called, str or Numbered"""
        return entry.path.name if entry.path else self.name or default_name(entry.request.prompt, entry.request.seed)

    def save_file(self, content, ending, entry, record):
        """`save` for what `destinations.encoded` has made; several threads may call, and wait for the disk together."""
        name = fitting(self.name_of(entry), ending, self.folder, self.listener)
        if entry.path:
            entry.path = write_file(content, self.folder, name, self.listener)
            return

        def free(path, taken):                           # nobody else gets it, though its line is not there yet
            with self.writing:
                found = free_for(name)(path, self.names)
                self.names.add(found.name)
                return found
        entry.path = write_file(content, self.folder, name, self.listener, free,
                                lambda path: self.add({"file": path.name} | record | {"asked": entry.asked}))

    def add(self, line):
        """Append a line; it is on the disk when this returns, by one fsync for all that were added meanwhile."""
        with self.writing:
            self.file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self.file.flush()
            self.lines.append(line)
            mine = len(self.lines)
        with self.syncing:
            if self.synced < mine:
                synced = len(self.lines)
                os.fsync(self.file.fileno())
                self.synced = synced


def is_possible(name):
    """Whether a file can have that name."""
    try:
        return "\0" not in name and len(os.fsencode(name)) <= LONGEST_NAME
    except UnicodeEncodeError:        # half a character
        return False
