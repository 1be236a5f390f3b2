# The version of Kubernetes whose programs integration/kube and integration/cluster build.
KUBE_VERSION := v1.37.2
# Without these linker flags the programs report v0.0.0.
VERSION_PKG  := k8s.io/component-base/version
part          = $(word $(1),$(subst ., ,$(KUBE_VERSION:v%=%)))
LDFLAGS      := -s -w -X $(VERSION_PKG).gitVersion=$(KUBE_VERSION) -X $(VERSION_PKG).gitMajor=$(call part,1) -X $(VERSION_PKG).gitMinor=$(call part,2)
