# SPDX-License-Identifier: Apache-2.0
"""docs/CHART.md against the chart."""
DOCUMENTATION = ()
