"""The preview behind the door: torch is loaded beside the first answers, and previews keep out of the others' way."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread

from normcore.menu.datasets import DigitsSpec
from normcore.menu.models import MlpSpec
from normcore.spec import JobSpec
from worker.settings import Settings

if TYPE_CHECKING:
    from normcore.preview import Preview


class Previewer:
    """Computes previews in worker threads, once `normcore.preview` (which brings torch) is loaded.

    At most two run at once, so that a burst of orders leaves threads to the requests that only read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "load-preview")
        self._loaded: Future[Any] = self._thread.submit(self._load)
        self._limiter = CapacityLimiter(2)

    @property
    def trouble(self) -> str | None:
        """Why a preview would not start at once; None where it would."""
        if not self._loaded.done():
            return "still loading; orders wait until it is there"
        error = self._loaded.exception()
        return None if error is None else f"cannot be loaded: {type(error).__name__}; orders fail"

    async def preview(self, spec: JobSpec) -> Preview:
        """The preview of a job: sizes, and every reason why it could not be built."""
        preview, folders = await asyncio.wrap_future(self._loaded)
        return await to_thread.run_sync(preview, spec, folders, limiter=self._limiter)

    def close(self) -> None:
        """Wait for the loading thread, which cannot be stopped while it imports."""
        self._thread.shutdown()

    def _load(self) -> tuple[Any, Any]:
        from normcore.data.folders import DataFolders
        from normcore.preview import preview

        folders = DataFolders(self._settings.data_dir, self._settings.state_dir / "cache", self._settings.hub)
        # The first preview of a process takes a second longer than the next: here nobody waits for it.
        preview(JobSpec(model=MlpSpec(), data=DigitsSpec()), folders)
        return preview, folders
