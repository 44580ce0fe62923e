"""A study: one question asked of trained networks, with everything that its report needs.

How a study is written
----------------------

It is one file in `stitchkern/studies/catalogue`, and nothing else: `low_cka.py` is `stitchkern study low-cka`, and from
then on in `--list`, in `stitchkern study all` and on the summary page. The first line of its docstring is its title,
the rest says what is done and where it comes from. It holds::

    def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
        found = {}
        for pair in networks.pairs:                                  # or networks.all, for one network at a time
            for layer in options.layers or networks.some_layers(options.either(3, 1)):
                unit = partial(_unit, pair, layer, data, options)
                found[pair.name, layer] = options.keep(pair, unit, layer=layer)
        return StudyResult(headline=…, lede=…, figures=[…], curves=[…], matrices=[…], tables=[…], definitions=[…])

    def _unit(pair, layer, data, options, checkpoint) -> dict[str, float]:
        model = match_task(*pair.models, layer, data.fit, epochs=options.epochs, checkpoint=checkpoint)
        return …

- **Units.** What takes time is computed in functions that `options.keep` calls, or does not where an earlier run has
  done so. A unit is keyed by its networks (the first argument), the data, the study's file, `quick` and `epochs`, and
  by the keywords, which must tell it from every other one of the study: the layer, the rank, the seed. It returns
  numbers, text, tensors, or lists and dicts of them. It may give the path that it gets to one `match_task` or
  `match_tasks` as its ``checkpoint``, so that an interruption loses less than the unit.
- **Networks of one's own.** `digits_network` trains one on the digits, `options.work.train(key, make, train)` any
  other; each is trained once, and its state kept.
- **Aggregation** (means over pairs, the headline) stands outside the units and is made anew in each run.
- **Quick.** `options.quick` asks for a set that takes seconds on the digits; `options.either(full, quick)` picks.
- **The paper's numbers** stand in `stitchkern.studies.study.paper`. Beside ours, as columns (`Table.columns_of_paper`)
  or lines (`Line.of_paper`), go those of the networks at hand (`networks.kind`); for others they go into a table of
  their own.
- **Definitions** of what stands in tables and curves: `stitchkern.studies.study.words` has those that several use.

Everything that a page shows is in the `StudyResult`, plain numbers that travel as JSON; `stitchkern.report.study` draws
it.
"""

from stitchkern.studies.study import paper, words
from stitchkern.studies.study.networks import (
    Network,
    NetworkPair,
    Networks,
    digits_network,
    digits_networks,
    kind_of,
    networks_from_specs,
    with_weights,
)
from stitchkern.studies.study.options import Options
from stitchkern.studies.study.registry import study_names, study_title
from stitchkern.studies.study.result import Curves, Figure, Line, Matrix, Panel, StudyResult, Table
from stitchkern.studies.study.run import run_study
from stitchkern.studies.study.work import Work, fingerprint

__all__ = [
    "Curves",
    "Figure",
    "Line",
    "Matrix",
    "Network",
    "NetworkPair",
    "Networks",
    "Options",
    "Panel",
    "StudyResult",
    "Table",
    "Work",
    "digits_network",
    "digits_networks",
    "fingerprint",
    "kind_of",
    "networks_from_specs",
    "paper",
    "run_study",
    "study_names",
    "study_title",
    "with_weights",
    "words",
]
