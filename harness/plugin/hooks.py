"""The pytest plugin: options, one test per claim, claims gathered from every worker, reports and the exit code."""

from __future__ import annotations

import io
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness import clock  # first: it starts when it is imported
from harness.cases.profiles import PROFILES
from harness.plugin.defaults import AUDIT_JSON, PRIOR, REPORT

HERE = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The audit's options, DESIGN §4."""
    group = parser.getgroup("audit", "reference-conformance audit")
    add = group.addoption
    add(
        "--report",
        nargs="?",
        const="",
        metavar="PATH",
        help=f"write the review (default {REPORT}; - is stdout)",
    )
    add(
        "--subject",
        default="lora_lite",
        metavar="REF",
        help="NAME, package.module:Attr or path/to/file.py:Attr",
    )
    add(
        "--subject-python",
        default=None,
        metavar="PATH",
        help="run the subject's file in this interpreter instead of here",
    )
    add("--offline", action="store_true", help="make no connection to set a subject's environment up")
    add("--variant", default=None, metavar="V,...", help="only these variants")
    add("--aspect", default=None, metavar="A,...", help="only these aspects: forward, save_load, ...")
    add("--oracle", default=None, metavar="O,...", help="only these oracles")
    add("--audit-json", default=None, metavar="PATH", help=f"machine-readable result (default {AUDIT_JSON})")
    add("--sarif", default=None, metavar="PATH", help="also write SARIF 2.1.0")
    add("--html", default=None, metavar="PATH", help="also write a self-contained HTML page")
    add("--prior", default=None, metavar="PATH", help=f"the previous review (default {PRIOR})")
    add(
        "--deviations", default=None, metavar="PATH", help="declared deviations (default: beside the subject)"
    )
    add(
        "--audit-profile",
        default="default",
        metavar="NAME",
        help=f"{', '.join(PROFILES)}: examples per check",
    )

    add("--shard", default=None, metavar="I/N", help="only part I of N; `python -m reports merge` joins them")


def pytest_configure(config: pytest.Config) -> None:
    """Tests of the audit itself and `--help` need no subject; the audit is built on the first harness test."""
    config.stash[AUDIT] = None
    if _has_workers(config):
        config.pluginmanager.register(AfterTheWorkers())
    else:
        _build(config)


def _build(config: pytest.Config) -> Any:
    """The audit, and on the controller the collector of what it finds; None where no audit was asked for."""
    if not _concerns_harness(config) and config.getoption("report") is None:
        return None
    with clock.charge("imports"):
        from harness.plugin import collector, options

        built = options.build(config)
    config.stash[AUDIT] = built
    if hasattr(config, "workerinput"):
        return None
    gathering = collector.Collector(config, built)
    config.pluginmanager.register(gathering, "audit-collector")
    return gathering


def _has_workers(config: pytest.Config) -> bool:
    """Whether this process is going to start workers: it builds the audit while they are starting."""
    return config.getoption("dist", "no") != "no" and not config.option.collectonly


AUDIT: pytest.StashKey[Any] = pytest.StashKey()


def _concerns_harness(config: pytest.Config) -> bool:
    for arg in config.args:
        path = Path(str(arg).split("::")[0])
        path = path if path.is_absolute() else config.invocation_params.dir / path
        if HERE in [path.resolve(), *path.resolve().parents] or path.resolve() in HERE.parents:
            return True
    return False


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """With `--report=-` everything pytest has to say goes to stderr, for stdout is the review's; with -q as well, only
    what went wrong beside the claims."""
    config = session.config
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if config.getoption("report") == "-" and terminal is not None and not hasattr(config, "workerinput"):
        terminal._tw._file = sys.stderr
        if config.option.verbose < 0:
            terminal._tw._file = config.stash[KEPT_BACK] = io.StringIO()


def pytest_unconfigure(config: pytest.Config) -> None:
    """What was kept back is shown after all where a test that is no claim failed, or the run broke off."""
    kept = config.stash.get(KEPT_BACK, None)
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if kept is not None and (terminal is None or _something_else_failed(terminal)):
        sys.stderr.write(kept.getvalue())


def _something_else_failed(terminal: Any) -> bool:
    status = getattr(terminal._session, "exitstatus", 3)
    return bool(terminal.stats.get("failed") or terminal.stats.get("error") or status not in (0, 1))


KEPT_BACK: pytest.StashKey[io.StringIO] = pytest.StashKey()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per claim: check x variant x oracle."""
    check = _check_of(metafunc.function)
    built = metafunc.config.stash[AUDIT]
    if check is None or built is None:
        return
    keys = list(built.session.keys(check)) if check.info.aspect in built.aspects else []
    metafunc.parametrize("claim", keys, ids=[key.label for key in keys], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the placeholders that pytest makes for checks without claims in this selection."""
    kept = [item for item in items if not _placeholder(item)]
    if config.getoption("aspect"):  # tests of the references are of no one aspect
        kept = [item for item in kept if _claim_key(item) is not None or HERE not in item.path.parents]
    items[:] = kept
    if config.stash[AUDIT] is not None and config.stash[AUDIT].shard is not None:
        _keep_shard(config, items, set(config.stash[AUDIT].own))


def _keep_shard(config: pytest.Config, items: list[pytest.Item], own: set[str]) -> None:
    """Deselect the claims of the other shards; tests that are no claims stay in every one."""
    keys = [_claim_key(item) for item in items]
    elsewhere = [i for i, key in zip(items, keys, strict=True) if key is not None and key.id not in own]
    gone = {id(item) for item in elsewhere}
    items[:] = [item for item in items if id(item) not in gone]
    config.hook.pytest_deselected(items=elsewhere)


def _check_of(function: Any) -> Any:
    """The check behind a collected test function, or None."""
    return getattr(function, "audit_check", None)


def _claim_key(item: pytest.Item) -> Any:
    key = getattr(getattr(item, "callspec", None), "params", {}).get("claim")
    return key if hasattr(key, "check") else None


def _placeholder(item: pytest.Item) -> bool:
    if _check_of(getattr(item, "function", None)) is None:
        # A test of the references, narrowed until nothing is left of it.
        return item.path.parent == HERE and getattr(getattr(item, "callspec", None), "id", "") == "NOTSET"
    return _claim_key(item) is None


class AfterTheWorkers:
    """Hooks of a process with workers that must run after xdist has started them."""

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self, session: pytest.Session) -> Generator[None, None, None]:
        """Build the audit here, beside the workers that import the same."""
        yield
        if (collector := _build(session.config)) is not None:
            collector.pytest_sessionstart()


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Any:
    """The claim that this test asks; its record travels with the test's report."""
    built = request.config.stash[AUDIT]
    records: list[Any] = []
    request.node.stash[RECORDS] = records
    return built.session.run(request.param, records.append)


RECORDS: pytest.StashKey[list[Any]] = pytest.StashKey()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Put the claim's record on the report, as plain values: workers send reports to the controller."""
    outcome = yield
    report = outcome.get_result()
    records = item.stash.get(RECORDS, [])
    if report.when == "call" and records:
        from reports.plain_values import claim_to_plain

        report.audit_claim = claim_to_plain(records[-1])
