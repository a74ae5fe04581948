//! `cargo xtask`: everything that is done in this repository beyond `cargo build`. Each task is one module.

// A command-line tool talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod bundle;
mod ci;
mod demo;
mod devices;
mod doctor;
mod golden;
mod home;
mod kernels;
mod new_op;
mod programs;
mod report;
mod sim;
mod svg;
mod test;
mod tidy;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the mhc-ops workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Test(test::Args),
    Bench(bench::Args),
    Golden(golden::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    NewOp(new_op::Args),
    Tidy(tidy::Args),
    Ci(ci::Args),
    Bundle(bundle::Args),
    Kernels(kernels::Args),
    Sim(sim::Args),
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Golden(args) => golden::run(&args),
        Task::Doctor(args) => doctor::run(&args),
        Task::NewOp(args) => new_op::run(&args),
        Task::Tidy(args) => tidy::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Bundle(args) => bundle::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Verify(args) => verify::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
