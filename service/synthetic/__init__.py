"""Generated cohorts: pyramidal H&E-like slides of any size with planted lesions and decoys, for trials and tests.

At low power these slides show candidates; only high power distinguishes a lesion from a decoy. A slide of
100,000 x 100,000 px takes seconds to make and some 30 MB on disk, because equal tiles are stored once. `layout` decides
what is where, `layers` and `painting` which tiles result, `nuclei` and `textures` what fills the tiles, `slide` and
`tiff` write the pyramid, `plan` and `cohort` the folder. The command is ``python -m service.synthetic``.
"""

from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

__all__ = ["CohortSettings", "make_cohort"]
