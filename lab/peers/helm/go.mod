module guildnet.invalid/peers/helm

go 1.26

require helm.sh/helm/v3 v3.19.5

// The patch release of Kubernetes' libraries that the lab's kubectl is of.
require (
	k8s.io/api v0.34.4
	k8s.io/client-go v0.34.4
)
