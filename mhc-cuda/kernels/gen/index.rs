// Written by `cargo xtask kernels`.
&[
    Image { source: "post", target: "compute_80", bytes: 1615503, data: include_bytes!("post.compute_80.ptx.zst") },
    Image { source: "post", target: "sm_100", bytes: 981424, data: include_bytes!("post.sm_100.cubin.zst") },
    Image { source: "post", target: "sm_120", bytes: 980848, data: include_bytes!("post.sm_120.cubin.zst") },
    Image { source: "post", target: "sm_80", bytes: 846312, data: include_bytes!("post.sm_80.cubin.zst") },
    Image { source: "post", target: "sm_86", bytes: 838376, data: include_bytes!("post.sm_86.cubin.zst") },
    Image { source: "post", target: "sm_90", bytes: 899376, data: include_bytes!("post.sm_90.cubin.zst") },
]
