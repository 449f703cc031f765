"""Repositories in the cache of huggingface_hub, as that package stores them."""
import pathlib
import shutil

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(cache, repository, source):
    """A repository as huggingface_hub stores it: files are links to blobs."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir(exist_ok=True)
    for path in sorted(pathlib.Path(source).rglob("*")):
        if path.is_file():
            name = path.relative_to(source)
            blob = folder / "blobs" / name.as_posix().replace("/", "_")
            shutil.copy(path, blob)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).unlink(missing_ok=True)
            (snapshot / name).symlink_to(blob)
    return snapshot
