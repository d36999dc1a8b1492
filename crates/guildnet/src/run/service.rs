//! `guildnet serve`, `guildnet logs`, and what a unit of systemd is to name.

use std::{
    io::BufWriter,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use guildnet_host::{Handed, LogsRequest, Settings, UnitOf};
use guildnet_model::Class;

use super::Context;
use crate::{
    cli::{Logs, Serve, Systemd},
    failure::Failure,
    print,
    settings::{self, Flags},
};

pub(super) async fn serve(args: Serve, handed: Handed, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags { listen: args.listen, log_format: args.log_format, ..Flags::default() })?;
    let Some(whose) = args.systemd else {
        return Ok(guildnet_host::serve(&settings, handed, &context.talk).await?);
    };
    let (of, program, home) = installed(whose, &settings)?;
    print::out(&if args.socket {
        guildnet_host::host_socket(of, &settings)?
    } else {
        guildnet_host::host_unit(of, &program, &home, &settings, &guildnet_host::kubeconfig_files(&settings)?)?
    })
}

/// What a unit names: as whom, this program, and the home folder, by their full paths.
pub(super) fn installed(whose: Systemd, settings: &Settings) -> Result<(UnitOf, PathBuf, PathBuf), Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|why| {
            Failure::new(Class::Failed, format!("{}: {why}", path.display()), "run it in a folder that is there")
        })
    };
    let program = std::env::current_exe().map_err(|why| {
        Failure::new(
            Class::Failed,
            format!("this program does not know its own path: {why}"),
            "call it by its full path",
        )
    })?;
    let of = match whose {
        Systemd::User => UnitOf::Person,
        Systemd::System => {
            UnitOf::System { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
        }
    };
    Ok((of, program, absolute(&settings.home)?))
}

pub(super) async fn logs(args: Logs, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let cluster = args.cluster.as_deref().map(settings::cluster).transpose()?;
    let request = LogsRequest { cluster, lines: args.lines as usize, follow: args.follow };
    let output = std::io::stdout();
    Ok(guildnet_host::logs(&settings, &request, &mut BufWriter::new(output.lock()), output.as_fd(), &context.talk)
        .await?)
}
