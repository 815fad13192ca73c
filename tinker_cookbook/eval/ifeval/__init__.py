"""IFEval: verifiable instructions, checked by rules (Zhou et al. 2023, arXiv 2311.07911).

| module | what |
|---|---|
| scoring | the instructions of a row; strict and loose verdicts on a reply |
| checkers | the 25 kinds of instruction, with every reading that changes scores |
| arguments | what the arguments of instructions may be |
| text | words, sentences and paragraphs |
| language | language detection |

The task for Inspect is `tinker_cookbook.eval.tasks.ifeval`.
"""
