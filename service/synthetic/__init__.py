"""Generated cohorts: pyramidal H&E-like slides of any size with planted lesions and decoys, for trials and tests.

In this world low power shows candidates and only high power tells lesion from decoy. A slide of 100,000 x 100,000 px
takes seconds and some 30 MB, because tiles that look alike are stored once: `layout` says what lies where, `layers`
and `painting` which tiles that makes, `nuclei` and `textures` what fills them, `slide` and `tiff` write the pyramid,
`plan` and `cohort` the folder. The command is ``python -m service.synthetic``.
"""

from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

__all__ = ["CohortSettings", "make_cohort"]
