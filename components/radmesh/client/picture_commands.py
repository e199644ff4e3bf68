"""The commands about pictures: whether they are made, what changes, and studies fetched as remote viewers see them."""

import argparse
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from radmesh.client import answers, model, shell
from radmesh.client.shell import OK, PARTIAL, Command, counted, note, say, size_text
from radmesh.client.study_commands import safe

if TYPE_CHECKING:
    from radmesh.client.cluster import Cluster

_LOOK_SECONDS: Final = 0.5
# What looking at all studies takes is left between two looks, so many times.
_REST: Final = 10.0
_INSTEAD: Final = "fetch it without --remote"


def register(command: Command) -> None:
    """Add the commands."""
    curate = command(
        "curate",
        "show whether the pictures for remote viewers are made, and wait until they are",
        run_curate,
        answers.Curated,
        example="--rebuild STUDY_UID",
    )
    curate.add_argument("study", nargs="?", default="", metavar="STUDY_UID", help="only of this study; else of all")
    curate.add_argument("--rebuild", action="store_true", help="drop what there is first, and have it made again")
    curate.add_argument("--no-wait", action="store_true", help="say how it stands, and end")

    watch = command("watch", "print the studies that change, as it happens", run_watch, answers.Watched)
    watch.add_argument("--limit", type=shell.positive, default=0, metavar="N", help="end after so many")


# -- curate


def run_curate(arguments: argparse.Namespace) -> int:
    """Show how many pictures are made."""
    import time  # noqa: PLC0415

    with shell.connect(arguments) as cluster:
        dropped = cluster.wipe_web_cache(arguments.study) if arguments.rebuild else (0, 0)
        if not arguments.no_wait:
            _someone_works(cluster)
        with shell.progress("pictures", quiet=arguments.json, counting=True) as progress:
            task = progress.add_task("", total=None)
            while True:
                begin = time.monotonic()
                studies, instances, curated = _count(cluster, arguments.study)
                progress.update(task, total=instances, completed=curated)
                if arguments.no_wait or curated >= instances:
                    break
                time.sleep(max(_LOOK_SECONDS, (time.monotonic() - begin) * _REST))
    answer = answers.Curated(studies, instances, curated, *dropped)
    if arguments.json:
        shell.print_json(answer)
    else:
        if arguments.rebuild:
            say(f"{counted(answer.dropped_studies, 'study')} dropped, {size_text(answer.dropped_bytes)}")
        say(f"{curated:,} of {counted(instances, 'instance')} of {counted(studies, 'study')}")
    return OK if curated >= instances else PARTIAL


def _count(cluster: "Cluster", study_instance_uid: str) -> tuple[int, int, int]:
    """Return how many studies and instances there are, and how many of these are curated."""
    found = [cluster.study(study_instance_uid).study] if study_instance_uid else cluster.find()
    studies = instances = curated = 0
    for study in found:
        studies += 1
        instances += study.instance_count
        curated += min(study.curated_count, study.instance_count)
    return studies, instances, curated


def _someone_works(cluster: "Cluster") -> None:
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if not any(store.kind == "WEB_CACHE" and store.alive for store in cluster.status().stores):
        raise RadmeshError("PEER_UNAVAILABLE", "no Curator is alive: nobody makes pictures")


# -- watch


def run_watch(arguments: argparse.Namespace) -> int:
    """Print studies that change."""
    told = 0
    begun = False
    with shell.connect(arguments) as cluster:
        for studies in cluster.watch():
            if arguments.json:
                shell.print_json_line(answers.Watched(studies))
            elif not studies:
                note("any study may have changed" if begun else "watching; Ctrl-C ends it")
            for uid in () if arguments.json else studies:
                say(uid)
            sys.stdout.flush()
            begun = True
            told += len(studies)
            if arguments.limit and told >= arguments.limit:
                break
    return OK


# -- get --remote


def run_get_remote(arguments: argparse.Namespace) -> int:
    """Write the web cache's pictures of a study as DICOM files."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if arguments.variants or arguments.as_stored:
        raise RadmeshError("FIELD_INVALID", "--remote fetches what is shown: leave --variants and --as-stored away")
    written: list[answers.WrittenPicture] = []
    failed: list[answers.FailedFile] = []
    with shell.connect(arguments) as cluster, shell.progress("fetching", quiet=arguments.json) as progress:
        pictures, failures = _wanted(cluster, arguments)
        failed += failures
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RadmeshError("FILE_NOT_WRITTEN", f"cannot make {arguments.out}: {error.strerror}") from error
        count = len(pictures) + len(failed)
        task = progress.add_task(f"{len(failed)}/{count}", total=sum(p.bytes for p in pictures))
        writer = _Writer(cluster, arguments, lambda received: progress.advance(task, received))

        def fetch(picture: model.Picture) -> None:
            try:
                written.append(writer.write(picture))
            except RadmeshError as error:
                failed.append(answers.FailedFile(picture.sop_instance_uid, error.reason, error.message))
            progress.update(task, description=f"{len(written) + len(failed)}/{count}")

        with ThreadPoolExecutor(4) as pool:
            try:
                list(pool.map(fetch, pictures))
            except BaseException:
                # Interrupted: what is being fetched ends now, and takes its half file with it.
                cluster.close()
                raise
    if arguments.json:
        shell.print_json(answers.FetchedPictures(tuple(written), tuple(failed)))
    else:
        derived = sum(item.derived for item in written)
        notes = [f"{derived} derived"] * bool(derived) + [f"{len(failed)} not"] * bool(failed)
        shell.print_failures(failed)
        say(", ".join((f"{counted(len(written), 'file')} in {arguments.out}", *notes)))
        shell.print_remedies(failed)
    return OK if not failed else PARTIAL if written else shell.FAILED


def _wanted(cluster: "Cluster", arguments: argparse.Namespace) -> tuple[list[model.Picture], list[answers.FailedFile]]:
    """Return the pictures that can be written, and why others cannot."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    found = {
        picture.sop_instance_uid: picture
        for picture in cluster.manifest(arguments.study, series_instance_uid=arguments.series)
    }
    instances = list(
        cluster.instances(arguments.study, series_instance_uid=arguments.series, sop_instance_uid=arguments.instance)
    )
    if not instances:
        raise RadmeshError("INSTANCE_NOT_FOUND", "the study has no such instance")
    pictures, failed = [], []
    for instance in instances:
        uid = instance.sop_instance_uid
        picture = found.get(uid)
        if picture is None:
            text = "its picture is not made yet: 'radmesh curate' waits for it"
            failed.append(answers.FailedFile(uid, "RENDITION_NOT_FOUND", text))
        elif picture.state not in ("CODED", "PASSED"):
            what = "it has no picture" if picture.state == "NONE" else "its frames cannot be coded"
            frame = f" (frame {picture.frame})" if picture.frame else ""
            failed.append(answers.FailedFile(uid, picture.reason, f"{what}{frame}: {_INSTEAD}"))
        else:
            pictures.append(picture)
    return pictures, failed


class _Writer:
    """Writes pictures; the metadata of a series are read once, those of two are kept. Thread-safe."""

    def __init__(self, cluster: "Cluster", arguments: argparse.Namespace, received: Any) -> None:
        self._cluster, self._study, self._out = cluster, arguments.study, arguments.out
        self._received = received
        self._lock = threading.Lock()
        self._described: dict[str, dict[str, dict[str, Any]]] = {}

    def write(self, picture: model.Picture) -> answers.WrittenPicture:
        """Write the file of a picture.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, OBJECT_CORRUPT, FILE_NOT_WRITTEN, PEER_UNAVAILABLE.
        """
        from radmesh.client import assembly  # noqa: PLC0415 - brings pydicom
        from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

        described = self._metadata(picture.series_instance_uid).get(picture.sop_instance_uid)
        if described is None:
            raise RadmeshError("RENDITION_NOT_FOUND", "its metadata are not made yet: fetch it again")
        path = self._out / f"{safe(picture.sop_instance_uid)}.dcm"
        wanted = [(picture, number) for number in range(1, len(picture.frames) + 1)]
        left_out = assembly.write(path, described, picture, self._frames(wanted))
        return answers.WrittenPicture(
            str(path),
            picture.sop_instance_uid,
            picture.transfer_syntax_uid,
            len(picture.frames),
            picture.derived,
            left_out,
        )

    def _frames(self, wanted: list[tuple[model.Picture, int]]) -> Any:
        for frame in self._cluster.frame_data(self._study, wanted):
            self._received(len(frame.data))
            yield frame.data

    def _metadata(self, series: str) -> dict[str, dict[str, Any]]:
        with self._lock:
            if series not in self._described:
                while len(self._described) > 1:
                    del self._described[next(iter(self._described))]
                found = self._cluster.series_metadata(self._study, series)
                self._described[series] = {item.get("00080018", {}).get("Value", [""])[0]: item for item in found}
            return self._described[series]
