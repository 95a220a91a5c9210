"""``headstart bench``: one command a suite."""

from cyclopts import App

#: Each suite with the function that it is; the help text stands here so that listing imports none of them.
SUITES = {
    "tables": (
        "headstart.cli.bench_tables:tables",
        "Compare all methods and today's baselines on tables of small tasks.",
    ),
    "speed": ("headstart.cli.bench_suites:speed", "Time an outer step of MAML beside other libraries and plain loops."),
    "compile": (
        "headstart.cli.bench_suites:compile_",
        "Time compiled steps beside jitted JAX, and what compiling costs.",
    ),
    "memory": (
        "headstart.cli.bench_suites:memory",
        "Measure the memory of long inner loops, by each way of going back.",
    ),
    "sampler": ("headstart.cli.bench_suites:sampler", "Count episodes a second beside other libraries' samplers."),
    "roofline": (
        "headstart.cli.bench_roofline:roofline",
        "Measure what this machine can do at the best, and how near a meta-gradient comes to it.",
    ),
    "all": (
        "headstart.cli.bench_suites:all_",
        "Run speed, compile, memory and sampler, and hold them against the targets.",
    ),
}

app = App(name="bench", help_format="plaintext")
for _name, (_target, _help) in SUITES.items():
    app.command(_target, name=_name, help=_help)
