"""The command line: `normcore up | join | demo | submit | watch | ls | cancel | preview | certify | figure`.

It reaches the API by HTTP only; `certify` and `figure` need no laboratory.

Heavy packages are imported by the command that needs them, so that help comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from worker.states import State

if TYPE_CHECKING:
    from rich.console import Console

    from api.client import Client
    from api.views import JobView
    from worker.settings import Settings

FAILED, REFUSED, DIVERGED, CANCELLED, REFUTED, INTERRUPTED = 1, 2, 3, 4, 5, 130

EXITS = {State.FAILED: FAILED, State.DIVERGED: DIVERGED, State.CANCELLED: CANCELLED}

app = typer.Typer(
    name="normcore",
    help="A laboratory for normalization in deep networks, run as a service.",
    epilog=(
        f"Exit status: {FAILED} failed, {REFUSED} refused input, {DIVERGED} diverged, {CANCELLED} cancelled, "
        f"{REFUTED} a claim refuted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Api = Annotated[
    str | None,
    typer.Option("--api", metavar="URL", help="Where the API is; else NORMCORE_API_URL, else this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")]
OrderWords = Annotated[
    list[str],
    typer.Argument(
        metavar="ORDER...",
        help="A JSON file, or - for standard input; then fields to set, such as model.kind=vgg norm.kind=group",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]


def main() -> None:
    """The `normcore` console script."""
    app()


@app.command()
def up() -> None:
    """Start the laboratory on this machine: API, scheduler, worker, MLflow and broker. Ctrl-C stops it."""
    from api.up import up as start

    raise typer.Exit(start(_settings(), _console()))


@app.command()
def join() -> None:
    """Work for a laboratory on another machine: NORMCORE_LABORATORY says where, NORMCORE_MACHINE_KEY lets in."""
    from worker.join import main as start

    raise typer.Exit(start(_settings()))


@app.command()
def demo(*, api: Api = None) -> None:
    """Run the first experiment: the same net without a norm, with batch norm, and with batch norm under noise."""
    from api.demo import demo as run

    settings = _settings()
    here = api is None and "api_url" not in settings.model_fields_set
    raise typer.Exit(run(settings, _api_url(api), _console(), start=here))


@app.command()
def submit(
    order: OrderWords,
    *,
    api: Api = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until the job has ended.")] = False,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    key: Annotated[str | None, typer.Option(help="An idempotency key: a second order under it is the first.")] = None,
) -> None:
    """Order a job: normcore submit model.kind=vgg data.kind=digits norm.kind=batch steps=500 --watch."""
    from api.typed_order import UnreadableOrder, read_order

    if key is not None and not key.isascii():
        _give_up(f"an idempotency key is sent in a header and must be ASCII, got {key!r}", REFUSED)

    try:
        body = read_order(order, sys.stdin.buffer)
    except UnreadableOrder as error:
        _give_up(str(error), REFUSED)
    with _client(api) as client:
        job = client.submit(body, priority=priority, idempotency_key=key)
        if not as_json:
            _print(f"{job.id}  {job.name}  {job.state}\n  {client.url}{job.links.self}")
        elif not watch:
            _print(job.model_dump_json())
        if watch:
            _watch(client, job, as_json=as_json)
        elif not as_json:
            _print(f"  watch it with: normcore watch {job.id}")


@app.command()
def watch(job_id: JobId, *, api: Api = None, as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended; the exit status says how. With --json a line for each event."""
    with _client(api) as client:
        _watch(client, client.job(job_id), as_json=as_json)


@app.command("ls")
def list_jobs(
    *,
    api: Api = None,
    as_json: AsJson = False,
    state: Annotated[list[State] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY:VALUE", help="Only jobs with this label.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="At most so many, the newest.")
    ] = 20,
) -> None:
    """List jobs, the newest first."""
    from itertools import islice

    from api.job_table import job_table

    labels = {}
    for text in label or ():
        name, colon, value = text.partition(":")
        if not colon:
            _give_up(f"a label is given as key:value, got {text!r}", REFUSED)
        labels[name] = value
    with _client(api) as client:
        jobs = list(islice(client.jobs(states=state or (), labels=labels), limit))
    if as_json:
        _print(f"[{', '.join(job.model_dump_json() for job in jobs)}]")
    else:
        _console().print(job_table(jobs))


@app.command()
def cancel(job_id: JobId, *, api: Api = None, as_json: AsJson = False) -> None:
    """Cancel a job; one that runs writes a checkpoint first."""
    with _client(api) as client:
        job = client.cancel(job_id)
    if as_json:
        _print(job.model_dump_json())
    else:
        _print(f"{job.id}  {job.name}  {job.state if job.state is State.CANCELLED else 'is being cancelled'}")


@app.command()
def preview(order: OrderWords, *, api: Api = None, as_json: AsJson = False) -> None:
    """Say what a job would be, its size and its cost, or every reason why it cannot be built. Nothing is ordered."""
    from api.typed_order import UnreadableOrder, read_order

    try:
        body = read_order(order, sys.stdin.buffer)
    except UnreadableOrder as error:
        _give_up(str(error), REFUSED)
    with _client(api) as client:
        seen = client.preview(body)
    if as_json:
        _print(seen.model_dump_json())
        return
    _print(
        f"{seen.name}\n"
        f"  parameters      {seen.num_parameters:,}\n"
        f"  FLOPs per step  {seen.flops_per_step:.3g}\n"
        f"  memory          {seen.memory_mib:.0f} MiB\n"
        f"  steps           {seen.num_steps:,} ({seen.steps_per_epoch:,} per epoch)"
    )


@app.command()
def certify(
    layer: Annotated[
        str | None,
        typer.Argument(metavar="LAYER", help="A norm of the menu, or module:Class of your own.", show_default=False),
    ] = None,
    *,
    whole_shelf: Annotated[bool, typer.Option("--all", help="Every norm of the menu.")] = False,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument of the layer; may be repeated.")
    ] = None,
    num_features: Annotated[int | None, typer.Option(min=1, max=65536, help="Channels; 8 when not given.")] = None,
    like: Annotated[str | None, typer.Option(metavar="KIND", help="Claim what this norm of the menu claims.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROWS", help="Only these rows, such as conventions; may be repeated.")
    ] = None,
    inductor: Annotated[bool, typer.Option("--inductor", help="Compile with inductor; takes minutes.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try what a normalization layer claims: normcore certify group, or mine:MyNorm --like batch for your own."""
    from normcore.refusal import Refusal

    if whole_shelf == (layer is not None):
        _give_up("certify takes a layer, or --all for every norm of the menu; give one of the two", REFUSED)
    if whole_shelf and (arg or like is not None or num_features is not None):
        _give_up("--arg, --like and --num-features are for a single layer, got one of them with --all", REFUSED)
    backend = "inductor" if inductor else "aot_eager"
    try:
        passed = _certify(
            layer, arg or (), num_features, as_json=as_json, like=like, groups=only, backend=backend, onnx=onnx
        )
    except Refusal as refusal:
        _give_up(str(refusal), REFUSED)
    raise typer.Exit(0 if passed else REFUTED)


@app.command()
def figure(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="readings/<probe>.npz of MLflow runs, of one probe.", show_default=False
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Where to; beside the first file when not given.")
    ] = None,
    theme: Annotated[Literal["light", "dark"], typer.Option(help="What ground the colours are for.")] = "light",
    name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of a training; once per file, in their order.")
    ] = None,
) -> None:
    """Draw a probe's figure again from stored readings; several files stand side by side."""
    from api.figure_command import CannotDraw, redraw

    try:
        drawn = redraw(files, out, theme, name or ())
    except CannotDraw as error:
        _give_up(str(error), REFUSED)
    _print(str(drawn))


def _certify(name: str | None, words: Sequence[str], num_features: int | None, *, as_json: bool, **how: Any) -> bool:
    """Whether all claims of the layer held, or of every norm of the menu where none is named; shown as they come."""
    from api.certificate_table import certificate_table
    from api.typed_layer import typed_layer
    from normcore.certificate.certify import certify
    from normcore.certificate.shelf import shelf

    made = []
    console = _console()
    for kind in shelf() if name is None else [name]:
        # Standard output is for the certificate, whatever a stranger's layer has to say.
        with redirect_stdout(sys.stderr):
            found = certify(typed_layer(kind, words, num_features), **how)
        made.append(found)
        if as_json:
            continue
        if name is None:
            _print(f"{kind:18} {found.summary()}")
        else:
            _print(f"{found.layer} on {found.shape}")
        rows = found.failures if name is None else found.rows
        if rows:
            console.print(certificate_table(rows))
    if as_json:
        _print(made[0].to_json() if name is not None else f"[{', '.join(found.to_json() for found in made)}]")
    elif name is not None:
        _print(made[0].summary())
    return all(found.passed for found in made)


def _watch(client: Client, job: JobView, *, as_json: bool) -> NoReturn:
    from api.watch import watch as show

    try:
        if as_json:
            for event in client.events(job.id):
                _print(event.model_dump_json())
            job = client.job(job.id)
            _print(job.model_dump_json())
        else:
            job = show(client, job, _console())
    except KeyboardInterrupt:
        _give_up(f"the job goes on; come back with `normcore watch {job.id}`", INTERRUPTED)
    raise typer.Exit(EXITS.get(job.state, 0))


@contextmanager
def _client(api: str | None) -> Iterator[Client]:
    from api.client import ApiUnreachable, Client, RequestRefused

    try:
        with Client(_api_url(api)) as client:
            yield client
    except RequestRefused as error:
        _give_up(str(error), FAILED if error.problem.status >= 500 else REFUSED)
    except ApiUnreachable as error:
        _give_up(str(error), FAILED)


def _api_url(api: str | None) -> str:
    from api.embedded.lineup import api_url

    if api is not None:
        return api
    settings = _settings()
    return settings.api_url or api_url(settings)


def _settings() -> Settings:
    from pydantic import ValidationError

    from worker.settings import settings

    try:
        return settings()
    except ValidationError as error:
        wrong = [f"{'_'.join(str(step) for step in e['loc'])} is {e['input']!r}: {e['msg']}" for e in error.errors()]
        _give_up(f"a NORMCORE_* setting cannot be used: {'; '.join(wrong)}", REFUSED)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    # A pipe has no width: nothing is to be cut off there.
    return console if console.is_terminal else Console(highlight=False, width=1000)


def _print(text: str) -> None:
    typer.echo(text)


def _give_up(sentence: str, status: int) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(status)
