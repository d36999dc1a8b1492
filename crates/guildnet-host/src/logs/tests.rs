//! A log that is read and followed, through its rotation, to the end of its reader.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader, PipeReader, PipeWriter},
    os::fd::AsFd as _,
    thread,
};

use super::*;
use crate::Silent;

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("tempdir")
}

fn append(home: &Path, text: &str) {
    let mut log = OpenOptions::new().append(true).create(true).open(home.join("host.log")).expect("opened");
    log.write_all(text.as_bytes()).expect("written");
}

fn request(cluster: Option<&str>, lines: usize, follow: bool) -> LogsRequest {
    LogsRequest { cluster: cluster.map(|id| id.parse().expect("an id")), lines, follow }
}

fn run(home: &Path, request: &LogsRequest, mut out: PipeWriter) -> Result<(), HostError> {
    let settings = Settings::new(home.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let reader = out.try_clone().expect("cloned");
    runtime.block_on(logs(&settings, request, &mut out, reader.as_fd(), &Silent))
}

/// What is printed by a request that does not follow.
fn printed(home: &Path, request: &LogsRequest) -> String {
    let (reader, writer) = io::pipe().expect("a pipe");
    run(home, request, writer).expect("printed");
    io::read_to_string(reader).expect("read")
}

#[test]
fn the_last_lines_come_from_both_files_in_order() {
    let home = home();
    fs::write(home.path().join("host.log.1"), "1\n2 cluster=a\n3\n").expect("written");
    append(home.path(), "4\n5 cluster=a\n6");
    assert_eq!(printed(home.path(), &request(None, 200, false)), "1\n2 cluster=a\n3\n4\n5 cluster=a\n6\n");
    assert_eq!(printed(home.path(), &request(None, 4, false)), "3\n4\n5 cluster=a\n6\n");
    assert_eq!(printed(home.path(), &request(Some("a"), 200, false)), "2 cluster=a\n5 cluster=a\n");
    assert_eq!(printed(home.path(), &request(Some("a"), 1, false)), "5 cluster=a\n");
    assert_eq!(printed(home.path(), &request(None, 0, false)), "");
}

#[test]
fn no_log_and_an_unknown_cluster_are_told() {
    let home = home();
    let refused = |request: &LogsRequest| {
        let (_reader, writer) = io::pipe().expect("a pipe");
        run(home.path(), request, writer).expect_err("refused")
    };
    assert!(refused(&request(None, 1, false)).message().contains("host.log"));
    append(home.path(), "1\n");
    assert_eq!(refused(&request(Some("x"), 1, false)).message(), "there is no cluster x");
    assert_eq!(refused(&request(Some("x"), 1, true)).message(), "there is no cluster x", "nothing is waited for");
}

/// A request that follows, in a thread of its own, and what it prints.
fn following(home: &Path, request: LogsRequest) -> (thread::JoinHandle<Result<(), HostError>>, BufReader<PipeReader>) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let home = home.to_owned();
    (thread::spawn(move || run(&home, &request, writer)), BufReader::new(reader))
}

fn next(reader: &mut BufReader<PipeReader>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("read");
    line
}

#[test]
fn what_comes_is_followed_through_rotation_until_nobody_reads() {
    let home = home();
    append(home.path(), "1 cluster=a\n");
    let (following, mut reader) = following(home.path(), request(Some("a"), 10, true));
    assert_eq!(next(&mut reader), "1 cluster=a\n");
    append(home.path(), "2 cluster=b\n3 cluster=a\n4 clus");
    assert_eq!(next(&mut reader), "3 cluster=a\n");
    append(home.path(), "ter=a\n");
    assert_eq!(next(&mut reader), "4 cluster=a\n");
    append(home.path(), "5 cluster=a\n");
    fs::rename(home.path().join("host.log"), home.path().join("host.log.1")).expect("put aside");
    append(home.path(), "6 cluster=a\n");
    assert_eq!((next(&mut reader), next(&mut reader)), ("5 cluster=a\n".into(), "6 cluster=a\n".into()));
    append(home.path(), "7 cluster=a\n");
    assert_eq!(next(&mut reader), "7 cluster=a\n");
    // Nothing is written any more: the closed pipe alone ends it.
    drop(reader);
    following.join().expect("no panic").expect("no error");
}

#[test]
fn a_log_that_does_not_exist_yet_is_waited_for() {
    let home = home();
    let (following, mut reader) = following(home.path(), request(None, 10, true));
    append(home.path(), "1\n");
    assert_eq!(next(&mut reader), "1\n");
    drop(reader);
    following.join().expect("no panic").expect("no error");
}
