"""Lay the page out with Gradio, and answer what is done on it."""

import html
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densenet_backbones.demo.answers import (
    MOST_BYTES,
    MOST_PIXELS,
    Answer,
    Model,
    find_in_picture,
    save_answer,
)
from densenet_backbones.demo.videos import LONGEST, find_in_video, save_video
from densenet_backbones.inference.inputs.sources import VIDEO_SUFFIXES
from densenet_backbones.messages import describe_error, pluralize, show_controls

if TYPE_CHECKING:
    import gradio

LIMITS = (
    f"Pictures up to {MOST_PIXELS // 1_000_000} megapixels, videos up to {LONGEST} seconds, files "
    f"up to {MOST_BYTES // 2**20} MB. They stay on the machine that serves this page."
)

STYLE = """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important}
#head h1 {font-size: 1.3rem; font-weight: 600; margin: .2rem 0}
#head p, #limits p, .found p {color: var(--body-text-color-subdued); margin: 0; font-size: .85rem}
#head, #limits, .found, #trouble {padding: 0}
.found {min-height: 1.3rem}
#trouble p {color: #b42318; background: #fef3f2; border: 1px solid #fecdca; border-radius: 6px;
  padding: .6rem .8rem; margin: 0}
"""

Updates = list[Any]
"""New values of the page's parts: the error, then of each model what `_make_column` returns."""

# What a file or a model that cannot take it may raise, torch's lack of memory among them.
_TROUBLES = (ValueError, OSError, RuntimeError, MemoryError)


class Page:
    """The page of some models.

    Args:
        models: One, or two that are shown side by side.
        folder: Folder of its own for what is uploaded and drawn.
    """

    def __init__(self, models: Sequence[Model], folder: Path) -> None:
        self.models, self.folder = models, folder

    def build(self) -> "gradio.Blocks":
        """Return the page, ready to be served by `launch`."""
        import gradio

        titles = " and ".join(model.title for model in self.models)
        with gradio.Blocks(
            title=f"{show_controls(titles)} - densenet demo",
            analytics_enabled=False,
            delete_cache=(600, 3600),  # seconds: files of an hour ago go every ten minutes
        ) as blocks:
            gradio.HTML(self._describe(), elem_id="head", padding=False)
            with gradio.Row(equal_height=False):
                with gradio.Column(scale=1, min_width=280):
                    file, score, classes = self._make_controls(gradio)
                with gradio.Column(scale=3):
                    trouble = gradio.HTML(visible=False, elem_id="trouble", padding=False)
                    with gradio.Row(equal_height=False):
                        shown = [self._make_column(gradio, n) for n in range(len(self.models))]
            answer = gradio.State(None, time_to_live=3600)
            parts = [trouble, *(part for column in shown for part in column)]
            controls: Any = [score, classes]
            private: Any = {"api_visibility": "private"}
            bar = gradio.Progress()

            def look(file: str, score: float, classes: list[str], progress: Any = bar) -> Updates:
                return self.look(file, score, classes, progress)

            watched = [column[0] for column in shown]
            file.change(
                look, [file, *controls], [answer, *parts], show_progress_on=watched, **private
            )
            quiet: Any = {"show_progress": "hidden", "trigger_mode": "always_last"}
            for control in controls:
                control.change(self.redraw, [answer, *controls], parts, **quiet, **private)
        blocks.queue(max_size=16, default_concurrency_limit=1, api_open=False)
        page: gradio.Blocks = blocks
        return page

    def _describe(self) -> str:
        rows = [
            f"<b>{_escape(model.title)}</b>: <code>{_escape(model.predictor.spec.name)}</code>, "
            f"{pluralize(len(model.class_names), 'class')}"
            for model in self.models
        ]
        return f"<h1>densenet demo</h1><p>{' · '.join(rows)}</p>"

    def _make_controls(self, gradio: Any) -> tuple[Any, Any, Any]:
        file = gradio.File(label="Drop a picture or a video", elem_id="drop", height=150)
        gradio.HTML(f"<p>{LIMITS}</p>", elem_id="limits", padding=False)
        score = gradio.Slider(
            0,
            1,
            max(model.default_score for model in self.models),
            step=0.01,
            label="Score from",
            elem_id="score",
        )
        names = dict.fromkeys(name for model in self.models for name in model.class_names)
        classes = gradio.Dropdown(
            [(show_controls(name), name) for name in names],
            multiselect=True,
            label="Classes (all, if none is chosen)",
            elem_id="classes",
        )
        return file, score, classes

    def _make_column(self, gradio: Any, number: int) -> list[Any]:
        """Return the parts of a model: picture, video, a line about them, and two downloads."""
        with gradio.Column(min_width=320):
            picture = gradio.Image(
                label=show_controls(self.models[number].title),
                interactive=False,
                buttons=["fullscreen"],
                elem_id=f"picture-{number}",
            )
            video = gradio.Video(
                label=show_controls(self.models[number].title),
                interactive=False,
                visible=False,
                buttons=[],
                elem_id=f"video-{number}",
            )
            found = gradio.HTML("", elem_id=f"found-{number}", elem_classes="found", padding=False)
            with gradio.Row():
                downloads = [
                    gradio.DownloadButton(
                        label, size="sm", interactive=False, elem_id=f"{name}-{number}"
                    )
                    for label, name in (("Save picture", "save"), ("Save JSON", "json"))
                ]
        return [picture, video, found, *downloads]

    # -- what is done on the page ----------------------------------------------------------------

    def look(
        self,
        file: str | None,
        score: float,
        classes: Sequence[str],
        report: Callable[[float], object] = lambda share: None,
    ) -> Updates:
        """Run the models on a new file; the answer, which `redraw` takes, comes first."""
        if not file:
            return [None, *self._show_nothing("")]
        path = Path(file)
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                answer = find_in_video(self.models, path, report)
            else:
                answer = find_in_picture(self.models, path)
        except _TROUBLES as error:
            return [None, *self._show_nothing(self._explain(error, path))]
        return [answer, *self.redraw(answer, score, classes)]

    def redraw(self, answer: Answer | None, score: float, classes: Sequence[str]) -> Updates:
        """Draw an answer from another score on, or other classes of it; no model runs."""
        if answer is None:
            return self._show_nothing("")
        try:
            return [_hide(), *self._draw(answer, score, classes)]
        except _TROUBLES as error:
            return self._show_nothing(self._explain(error, answer.file))

    def _draw(self, answer: Answer, score: float, classes: Sequence[str]) -> Iterator[Any]:
        import gradio

        # In Gradio's own folder, where it deletes what is old.
        folder = self.folder / secrets.token_hex(16)
        is_video = answer.step is not None
        for number, model in enumerate(self.models):
            stem = re.sub(r"\W+", "-", f"{answer.file.stem}-{model.title}")[:100]
            write = save_video if is_video else save_answer
            drawn, described, found = write(answer, number, score, classes, folder / stem)
            files = (None, str(drawn)) if is_video else (str(drawn), None)
            yield gradio.Image(value=files[0], visible=not is_video)
            yield gradio.Video(value=files[1], visible=is_video)
            yield f"<p>{_escape(found)}</p>"
            label = "Save video" if is_video else "Save picture"
            yield gradio.DownloadButton(label, value=str(drawn), interactive=True)
            yield gradio.DownloadButton(value=str(described), interactive=True)

    def _show_nothing(self, trouble: str) -> Updates:
        import gradio

        line = gradio.HTML(f"<p>{_escape(trouble)}</p>", visible=True) if trouble else _hide()
        no_file = gradio.DownloadButton(value=None, interactive=False)
        nothing = gradio.Image(None, visible=True), gradio.Video(None, visible=False)
        return [line, *([*nothing, "", no_file, no_file] * len(self.models))]

    def _explain(self, error: Exception, file: Path) -> str:
        """Return an error's sentence, in which the file has the name that its owner knows."""
        sentence = describe_error(error).partition("\n")[0]
        return sentence.replace(str(file), file.name).replace(str(self.folder), "")


def _hide() -> Any:
    import gradio

    return gradio.HTML("", visible=False)


def _escape(text: str) -> str:
    return html.escape(show_controls(text))
