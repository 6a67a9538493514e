"""The words of --help."""

DESCRIPTION = """\
Classify images with AlexNet on a Triton server.

IMAGE is a file (JPEG, PNG, WebP, GIF, BMP); a folder, with --recursive; a glob in
quotes ('photos/**/*.jpg'); - for one image on standard input; @LIST for a file of
paths, one a line or as `find -print0` writes them (@- reads the list from standard
input); or an http or https address, with --allow-urls. A file whose name begins
with @ or - is given as ./@name, ./-name. `info` describes the server; a file of
that name is ./info.

An image is turned as its EXIF says, converted to 8-bit RGB (CMYK, 16-bit and
palette images too), its first frame taken, transparency laid on white, the short
side scaled to 256 pixels and the centre cropped. Files over 32 MiB and pictures
over 100 million pixels are refused before they are decoded.
"""

EPILOG = """\
exit codes
  0  all images were classified
  1  some image could not be; each has a line on standard error, the others are printed
  2  wrong usage
  3  the server is not reachable, not ready, does not answer in time, or lacks the model
  130  interrupted

results
  json  one object a line, in the order given:
        {"path", "model", "version", "top": [{"label", "index", "probability"}], "ms"}
        or {"path", "error"}; ms is the time of the request that carried the image
  csv   path,model,version,ms,error,label_1,index_1,probability_1,...
  With --output each result is in FILE when the next is asked for. A run that was cut
  off is continued by the same command with --resume: every image is in FILE once.
  Failed images in FILE count as done; remove their lines to try them again.
  FILE.settings remembers --model, --model-version, --top, --threshold and --labels:
  going on with others is refused, as the results would not be alike.

when things go wrong
  A request that met a broken connection, a busy or a restarting server is sent again
  after a random pause of at most 0.1, 0.2, 0.4 ... 2 s, up to --retries times and
  within --timeout. All requests together repeat at most a tenth of what they sent
  (and a first few hundred), so that a server in trouble is left in peace. A server
  that went away in the middle of a run is waited for until --timeout. With several
  --url the first that is well is used; a lost one is asked every second until it is
  back. A run ends with exit code 3 at the first image that no server answered.

environment
  GRPC_PORT  port of the default address
  NO_COLOR   no colour, no bars

examples
  alexnet-classify photo.jpg
  alexnet-classify --recursive photos --output photos.jsonl --concurrency 32 --resume
  find . -name '*.png' -print0 | alexnet-classify @- --format csv
  alexnet-classify cat.jpg --url grpc://one:8001,grpc://two:8001 --wait 60
  alexnet-classify info --url http://127.0.0.1:8000
  eval "$(alexnet-classify --completion bash)"
"""

INFO_DESCRIPTION = "Describe the server: its models and their versions, and what --model takes and gives."
