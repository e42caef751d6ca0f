"""Pictures of what the kit finds: the fusion map, models and measurements as bars. Imported only when drawing.

No picture says anything by colour alone. Every function returns a closed matplotlib figure: show or save it.
"""

from __future__ import annotations

from trtkit.plot.agreement import agreement
from trtkit.plot.bars import comparison, latency_bars
from trtkit.plot.files import save, suffixes
from trtkit.plot.flame import flame
from trtkit.plot.fusion import fusion_map
from trtkit.plot.style import style

__all__ = ["agreement", "comparison", "flame", "fusion_map", "latency_bars", "save", "style", "suffixes"]
