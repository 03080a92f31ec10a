// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools keeps in go.mod what build.py builds.
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
