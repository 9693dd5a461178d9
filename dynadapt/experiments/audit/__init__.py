"""`dynadapt audit`: were scores made before the learning that saw their tokens? Of a run of this package, or of anybody's program.

program.py runs a program and reads its answers, program_checks.py judges it by them; run_checks.py plays a run directory again and judges
it. documents.py makes and changes documents, report.py says what was found, docs/audit.md what it proves.
"""

from .program import Program
from .program_checks import audit_program
from .report import Report
from .run_checks import audit_run

__all__ = ["Program", "Report", "audit_program", "audit_run"]
