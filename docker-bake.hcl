# docker buildx bake: the image `tailrace` for amd64 and arm64. Two platforms need a builder that can store both, and QEMU or
# a machine of each architecture: docker buildx create --use
#   docker buildx bake                                       on this machine's architecture, as the local image `tailrace`
#   docker buildx bake --set '*.platform=linux/arm64' --load one other architecture
#   TAG=registry.example.com/you/tailrace:0.1.0 docker buildx bake all --push
variable "TAG" { default = "tailrace" }

# The index of torch's builds for CPUs has both architectures.
variable "TORCH_INDEX_URL" { default = "https://download.pytorch.org/whl/cpu" }

group "default" { targets = ["tailrace"] }

target "tailrace" {
  dockerfile = "Dockerfile"
  tags       = [TAG]
  args       = { TORCH_INDEX_URL = TORCH_INDEX_URL }
}

target "all" {
  inherits  = ["tailrace"]
  platforms = ["linux/amd64", "linux/arm64"]
  attest    = ["type=sbom", "type=provenance,mode=max"]
}
